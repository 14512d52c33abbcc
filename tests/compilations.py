"""How many programs JAX compiles."""

import jax


class CountCompilations:
    """Counts the programs that JAX compiles inside a `with`."""

    def __enter__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *exception):
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event, seconds, **details):
        self.count += event == "/jax/core/compile/backend_compile_duration"
