//! The buses: one file each, behind the feature of its name where it has a driver.
