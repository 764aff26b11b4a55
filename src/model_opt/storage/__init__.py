"""Knowledge that lasts: one protocol, one file a back end, one conformance suite."""

from model_opt.storage.open import open_store
from model_opt.federation.store import Inspection, KnowledgeStore

__all__ = ["Inspection", "KnowledgeStore", "open_store"]
