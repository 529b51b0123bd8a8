"""The extensions that a run of the load tester asks for."""

from argparse import Namespace

from protocol import ALL_FEATURES, NO_FEATURES, Feature

FEATURES = {str(feature.name).lower(): feature for feature in Feature} | {"all": ALL_FEATURES}


def parse_features(text: str) -> Feature:
    """Parse a list of features such as "receipts,history". Raises ValueError."""
    features = NO_FEATURES
    for name in filter(None, map(str.strip, text.split(","))):
        if name not in FEATURES:
            raise ValueError(f"{name!r} is not one of {', '.join(FEATURES)}")
        features |= FEATURES[name]
    return features


def asked_for(options: Namespace) -> Feature:
    """The features that a run asks for; none for an invalid list, which check() reports."""
    try:
        return parse_features(options.features)
    except ValueError:
        return NO_FEATURES
