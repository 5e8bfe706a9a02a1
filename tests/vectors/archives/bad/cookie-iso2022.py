# coding: iso2022_jp
