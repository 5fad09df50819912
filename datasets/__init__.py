"""Dataset cards (``<group>/<name>.yaml``) and the loaders they name (one module each).

A loader has ``load(card, folder) -> (splits, pictures, fingerprint)``: the field's splits, a function
from an item's path to the picture (bytes or PIL image), and a hash of everything that defines them.
"""
