"""Names, layouts and quirks of the packages that existing point cloud code imports."""
