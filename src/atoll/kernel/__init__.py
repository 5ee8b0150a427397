"""The kernel's interfaces: netlink, namespaces, nftables, sysctls, conntrack. No policy in here."""
