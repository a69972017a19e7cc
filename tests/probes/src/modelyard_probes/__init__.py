"""The four probes of the contracts, a net and a metric, as an outsider would add them."""
