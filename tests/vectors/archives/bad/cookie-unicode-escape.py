# -*- coding: unicode_escape -*-
# \u000aimport os
