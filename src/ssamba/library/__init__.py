"""What one does with embeddings: bulk embedding of collections, neighbors, figures."""
