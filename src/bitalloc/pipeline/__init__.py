"""The stages of ``bitalloc run`` and the typed recipe that describes them."""
