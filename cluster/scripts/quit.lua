-- node: put all its users offline
end_node(ARGV[1])
