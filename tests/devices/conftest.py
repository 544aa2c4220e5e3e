"""Eight virtual devices, which have to be asked for before JAX starts: these tests run in a process of their own."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
