"""How accuracy depends on the test size, and corrections for it (Touvron et al. 2019)."""
