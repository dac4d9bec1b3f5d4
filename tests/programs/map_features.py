"""Maps a dataset to features: `python map_features.py DATASET MODEL`.

Prints the fingerprint of the result, and whether it came from datasets' cache: then the model was not loaded.
"""

import sys

import datasets

from deepencoder.extraction import FeatureExtractor

data = datasets.load_from_disk(sys.argv[1])
extractor = FeatureExtractor(sys.argv[2])
mapped = data.map(extractor, batched=True, features=extractor.extend(data.features))
print(mapped._fingerprint, extractor._encoder is None)
