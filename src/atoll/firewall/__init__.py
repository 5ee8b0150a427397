"""The firewall: from the model to nft text. Pure; nothing here touches the kernel."""
