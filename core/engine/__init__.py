"""The only place with torch: models, adapters, training, generation, serving and export."""
