"""Pure functions of numbers and tensors: no config objects, no modules, no state."""
