"""The privileged part: verify, drop, run as somebody else, kill.

Outside `launcher.task` nothing here imports anything but the standard library and `integrity`: no third-party code but
`cryptography` is ever loaded by a process that could still become another user.
"""
