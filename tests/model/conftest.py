from tests.models import own_bundle, own_cache, tiny_bundle, tiny_run

__all__ = ["own_bundle", "own_cache", "tiny_bundle", "tiny_run"]
