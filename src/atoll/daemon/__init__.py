"""The daemon: the engine behind HTTP on a unix socket, and the watcher that repairs what others change."""
