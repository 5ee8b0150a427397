"""Front doors: the protocols of Docker, Podman and CNI runtimes, each in its own words. They translate; the engine does the work."""
