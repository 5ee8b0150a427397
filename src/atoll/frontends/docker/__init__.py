"""The front door for Docker: its remote network driver and its IPAM driver, on one socket."""
