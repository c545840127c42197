"""The models that a run asks beside its own: what tells whether they are still the same when it goes on."""

from __future__ import annotations

import hashlib

from prefopt.config import Request
from prefopt.models.adapter import base_of
from prefopt.models.base import weights_hash
from prefopt.models.files import expanded, is_adapter, stored_weights
from prefopt.run import judging_run


def others_hash(request: Request) -> dict[str, str]:
    """sha256 of the stored weights by the key that names them: a reference of its own, reward models, who watches."""
    settings, found = request.settings, {}
    if settings.model.reference == "model" and request.objective.needs.reference:
        found["model.reference_name"] = _hash(str(settings.model.reference_name), "model.reference_name")
    if request.on_policy:
        for key, name in settings.judges():
            run = judging_run(name, key)
            own = _hash(str(run.model) if run else name, key)
            found[key] = hashlib.sha256(f"{found[key]} {own}".encode()).hexdigest() if key in found else own
    return found


def _hash(name: str, key: str) -> str:
    """An adapter's with its base."""
    name = expanded(name)
    if not is_adapter(name):
        return weights_hash(stored_weights(name, key))
    both = [weights_hash(stored_weights(name, key, adapter=True)), _hash(base_of(name, key), key)]
    return hashlib.sha256(" ".join(both).encode()).hexdigest()
