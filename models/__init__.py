"""Small networks, one architecture a file, that between them place BatchNorm in the ways met in practice.

Each file has a factory function of its own name, so that `models.resnet:resnet` says which network is meant. All
factories take keyword arguments that can be written as JSON, and every network's input is called `x`.
"""
