"""Small networks, one architecture in each file. Together they place BatchNorm in the ways that practice has.

Each file has a factory function of its own name, so that `models.resnet:resnet` says which network is meant. All
factories take keyword arguments that can be written as JSON, and every network's input is called `x`.
"""
