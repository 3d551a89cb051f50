"""All roles on one machine: simulation, the demo and its sample bank."""
