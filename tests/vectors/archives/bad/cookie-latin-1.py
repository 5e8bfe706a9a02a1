# coding=latin-1
