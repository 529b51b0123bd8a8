-- user id -> how many running nodes still have to write mail of this user
local nodes = 0
for _, node in ipairs(redis.call('SMEMBERS', p .. 'settling:' .. ARGV[1])) do
    if redis.call('ZSCORE', p .. 'nodes', node) then
        nodes = nodes + 1
    end
end
return nodes
