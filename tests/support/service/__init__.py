"""What tests of the service share: servers, clients and the models that they serve."""
