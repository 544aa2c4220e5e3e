"""How tests compile what they run once and compare within tolerances far above rounding."""

# On a CPU a third of the time of default compilation. Accuracy to rounding is tested on what users get: no options.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
