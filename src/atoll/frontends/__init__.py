"""The front doors: what Docker, Podman and CNI runtimes ask, in Atoll's words. They translate; the engine does the work."""
