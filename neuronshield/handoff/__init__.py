"""Hand-off: what is found, proven or shielded here, in the tools that others use."""
