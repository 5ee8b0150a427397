"""Labs: hosts and wires made of namespaces on one machine, for demos, tests and teaching."""
