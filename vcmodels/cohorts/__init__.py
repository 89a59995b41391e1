"""Lists of volumes that are no JSON: tables, folders and BIDS."""
