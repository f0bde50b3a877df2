"""Eight CPU devices, Keras on JAX, nobody's compile cache touched, repeatable hypotheses."""

import os
import tempfile

import hypothesis
import jax

_cache = tempfile.TemporaryDirectory()  # of the entry points that tests start; gone at the end
os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": _cache.name,
    "JAX_PLATFORMS": "cpu",
    "KERAS_BACKEND": "jax",
}
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_compilation_cache", False)

hypothesis.settings.register_profile(
    "seqjax", max_examples=20, deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("seqjax")
