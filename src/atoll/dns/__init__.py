"""The name server: a process of its own that answers containers by name and passes on what isn't ours.

`child.NameServer` is that process as its parent sees it, `zone` the words between them.
"""
