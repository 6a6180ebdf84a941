"""Several processes of one run: joining, sharding over devices, checking that they agree."""
