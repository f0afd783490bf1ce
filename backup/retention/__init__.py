"""What a store keeps: policy, pins, and the prune that lets the rest go."""
