"""The words that every process of dagseal speaks, the one with privileges too: names, digests, canonical JSON, frames, errors.

Promise: nothing here touches a clock, a network, a setting or a path; standard library only. With `launcher` outside
`launcher.task` it is all of ours that ever runs with privileges, and short enough to be read: `vocabulary` has the rest.
"""
