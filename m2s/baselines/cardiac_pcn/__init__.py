"""CardiacPCN (Beetz et al., 2021): contour points completed by a network and meshed by screened Poisson."""
