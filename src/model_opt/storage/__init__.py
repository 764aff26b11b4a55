"""Knowledge that lasts: one protocol, one file a back end, one conformance suite."""

from model_opt.federation.store import Inspection, KnowledgeStore
from model_opt.storage.open import open_store

__all__ = ["Inspection", "KnowledgeStore", "open_store"]
