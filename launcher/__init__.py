"""The launcher: verify, drop, run as somebody else, kill. Three folders, three privileges.

What lies here keeps the launcher's privileges (the monitor) or gives them up (`become`): the standard library and a few words
of `integrity`, nothing else. `launcher.notary` has dropped to an account of its own, `launcher.task` to the task's.
"""
