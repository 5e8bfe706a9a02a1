#!/usr/bin/python
	# vim: set fileencoding=raw_unicode_escape :
