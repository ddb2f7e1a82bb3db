"""Sound in and out: reading, resampling, writing, and cutting folders of music into clips."""
