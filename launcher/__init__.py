"""The launcher: drop, run as somebody else, kill.

What lies here keeps the launcher's privileges (the monitor) or gives them up (`become`): the standard library and `integrity`,
nothing else. What reads and decides has dropped before: `notary` to an account of its own, `launcher.task` to the task's.
"""
