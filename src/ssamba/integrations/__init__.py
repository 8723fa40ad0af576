"""Other libraries' interfaces to the models: one module each, which imports that library."""
