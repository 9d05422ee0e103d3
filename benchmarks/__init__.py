"""Speed as ratios against a baseline that is measured side by side in the same run."""
