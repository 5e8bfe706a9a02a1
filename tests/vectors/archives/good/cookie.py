#!/usr/bin/env python
# -*- coding: UTF_8 -*-
x = 'é'
