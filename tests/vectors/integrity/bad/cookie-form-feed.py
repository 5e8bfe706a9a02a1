 # coding: cp1252
