"""What to do about errors that nodes' apps and mods end in, by what the errors say."""

SECURE_AGGREGATION = (
    "SecAgg+ adds up dense models of Flower's legacy API under masks, so that nobody "
    "could expand what a plan keeps: leave secaggplus_mod out; Flower's differential "
    "privacy works inside AutoFlip."
)

EIGHT_BITS = (
    "Values travel in 8 bits, which no mod can clip or noise: put it behind ours, "
    "mods=[autoflip_mod, ...], or set AutoFlip(..., value_dtype='float32')."
)

MOD_ORDER = (
    "Deviations and units are no weights that a clipping or noising mod could change: "
    "put that mod behind ours, mods=[autoflip_mod, ...]; around AutoFlipClient, take a "
    "method whose nodes send what they trained."
)

LEGACY_MOD = (
    "It looks for a NumPyClient's records: a mod around the app is of Flower's legacy "
    "API; import mods from flwr.clientapp.mod, not flwr.client.mod."
)

NO_MOD = (
    "If the app has no autoflip_mod yet, that is why: ClientApp(mods=[autoflip_mod])."
)

OTHER_SIZES = (
    "What a node keeps of its model from round to round has to fit every plan: name "
    "in ignored_layers=(...) what stands before it, and its size never changes."
)

HINTS = (
    ("secaggplus_configs", SECURE_AGGREGATION),
    ("uint8", EIGHT_BITS),
    ("'fitres.", LEGACY_MOD),
    ("'arrays'", NO_MOD),
    ("Missing key(s) in state_dict", NO_MOD),
    ("size mismatch for ", OTHER_SIZES),
)
"""What a node's error says, and what to do; the first that fits."""

LONGEST_BEFORE = 200


def with_way_out(reason: str) -> str:
    """Add what to do to a node's error, if its words tell what is wrong."""
    for words, hint in HINTS:
        if words in reason:
            return f"{reason[:LONGEST_BEFORE]} {hint}"
    return reason
