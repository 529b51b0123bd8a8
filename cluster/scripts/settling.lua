-- user id -> number of the nodes, of those that are not gone, which still have mail of this user to write
local nodes = 0
for _, node in ipairs(redis.call('SMEMBERS', p .. 'settling:' .. ARGV[1])) do
    if redis.call('ZSCORE', p .. 'nodes', node) then
        nodes = nodes + 1
    end
end
return nodes
