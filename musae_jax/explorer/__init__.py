"""What a person looks at and listens to."""
